// What Grafana's page and its panel plugins register when they start: the options that a dashboard's JSON may set, by name.
import {
  FieldConfigPropertyItem, identityOverrideProcessor, Registry, thresholdsOverrideProcessor, valueMappingsOverrideProcessor,
} from '@grafana/data';

const STANDARD = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'color', 'links', 'filterable'];
// Of the timeseries panel.
const CUSTOM = [
  'drawStyle', 'lineInterpolation', 'lineWidth', 'lineStyle', 'fillOpacity', 'gradientMode', 'spanNulls', 'insertNulls', 'showPoints',
  'pointSize', 'stacking', 'axisPlacement', 'axisLabel', 'axisWidth', 'axisSoftMin', 'axisSoftMax', 'axisGridShow',
  'axisCenteredZero', 'axisColorMode', 'axisBorderShow', 'scaleDistribution', 'hideFrom', 'thresholdsStyle', 'transform', 'barAlignment',
];

export const fieldOptions = new Registry<FieldConfigPropertyItem>(() => [
  ...STANDARD.map((name) => option(name, identityOverrideProcessor)),
  option('thresholds', thresholdsOverrideProcessor),
  option('mappings', valueMappingsOverrideProcessor),
  ...CUSTOM.map((name) => ({ ...option(`custom.${name}`, identityOverrideProcessor), path: name, isCustom: true })),
]);

function option(name: string, process: unknown): FieldConfigPropertyItem {
  return {
    id: name, name, path: name, description: '', settings: {}, process, shouldApply: () => true,
    editor: null, override: null, getItemsCount: () => 1,
  } as unknown as FieldConfigPropertyItem;
}
